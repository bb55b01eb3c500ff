"""What commands share: their arguments, how they run, and what they print and draw."""
