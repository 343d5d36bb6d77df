"""The commands, a module each; the command line imports the one that it runs."""
