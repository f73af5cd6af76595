"""What schedules are written in: loops, intrinsics and their meanings, tensors as they lie."""
