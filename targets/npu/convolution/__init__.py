"""What a convolution is on the array: its numbers, how it is cut, what that costs, its loops."""
