"""Videos over HTTP: one process, one device, in the form of the public videos API."""
