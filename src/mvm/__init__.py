"""mvm: OpenClaw for many people, each asleep until somebody writes to it."""
