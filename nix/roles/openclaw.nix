# A person's OpenClaw, asleep unless needed.
{
  imports = [
    ../guests/baseline.nix
    ../guests/openclaw.nix
  ];
  services.mvm.guest.role = "capability-openclaw";
}
