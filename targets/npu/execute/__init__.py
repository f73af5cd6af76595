"""What instructions do, compiled by TVM: what an artifact runs."""
