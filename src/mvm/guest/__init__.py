"""What runs inside an instance beside OpenClaw. Standard library only; ships as one zipapp with `mvm.wire`."""
