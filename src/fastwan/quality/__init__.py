"""What judges a bundle: inspect, bench, verify."""
