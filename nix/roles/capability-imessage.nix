# Reserved (CONTRACT 3): a guest with the units that every guest has. There is no image of it yet.
{
  imports = [ ../guests/baseline.nix ];
  services.mvm.guest.role = "capability-imessage";
}
