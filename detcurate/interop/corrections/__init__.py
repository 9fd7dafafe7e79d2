"""Import labels that were corrected in an annotation tool."""
