# Always on: receives everybody's messages, routes them to workers, asks for wakes.
{
  imports = [
    ../guests/baseline.nix
    ../guests/openclaw.nix
  ];
  services.mvm.guest.role = "gateway";
}
