"""Model file -> FloatModel: few ATen operators, batch norms folded, proven the same function."""
