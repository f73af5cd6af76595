"""How the values of a network are distributed: from images, or from its batch norms."""
