"""What a person types: talks to the agent, prints tables, progress, JSON. No logic."""
