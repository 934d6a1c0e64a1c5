"""The core: fastrelay.mux, one file for each room, and the pair of sessions as a whole."""
