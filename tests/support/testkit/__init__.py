"""What tests in several folders share: stand-ins, small graphs, manifests."""
