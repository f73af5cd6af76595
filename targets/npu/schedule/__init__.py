"""How a layer is cut and ordered: tensorized TIR of each kind of layer."""
