"""From a torch program to Relax, with quantize and dequantize spelt out."""
