"""The server on Ray Serve: one ingress with the jobs, and a replica for each GPU."""
