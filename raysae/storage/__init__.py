"""Files that appear whole or not at all, and folders that are stored at a URI."""
