"""What people look at: pages of one file, and plots. They show results and compute none."""
