"""What all experiments share: the command line, results on disk, tables, timing, looks."""
