"""Chess: the moves of a piece, mate in one and mate in two."""
