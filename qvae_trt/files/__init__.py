"""Files of any kind: read as what they are, and written whole or not at all."""
