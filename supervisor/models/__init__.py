"""Models on disk: their names, where they are kept, whether a folder may be loaded, how one is pulled."""
