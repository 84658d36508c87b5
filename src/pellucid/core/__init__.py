"""What every explanation shares. Nothing here knows a modality, a method or a file format of pictures."""
