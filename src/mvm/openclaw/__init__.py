"""What mvm knows of OpenClaw."""
