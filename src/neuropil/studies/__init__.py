"""The studies: one file a paper, in one folder a chapter."""
