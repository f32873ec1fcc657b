# A workload that sleeps, without OpenClaw: whatever the flake's own modules start.
{
  imports = [ ../guests/baseline.nix ];
  services.mvm.guest.role = "worker";
}
