"""Files that appear whole or not at all, and folders that live at a URI."""
