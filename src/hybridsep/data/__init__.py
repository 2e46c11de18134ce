"""Songs: the Slakh-layout reader and the embedded MiniSlakh data set."""
