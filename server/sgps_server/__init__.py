"""The program at the coordinating centre. It needs no torch."""
