"""The models that come with the pack: the folders that hold them, and the header of the text encoder."""
