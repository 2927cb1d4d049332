"""One file for each foreign format, its reader and its writer; each says in a Reader or Writer what it is."""
