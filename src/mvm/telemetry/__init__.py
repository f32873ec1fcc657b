"""What the agent says of itself: logs, timings, metrics; and the keeping of secrets out of all of them."""
