"""Data for calibration and evaluation: four forms, one stream of checked batches."""
