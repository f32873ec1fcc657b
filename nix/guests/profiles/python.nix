# The profile `minimal`, and a Python in which people's tools install what they need.
{ config, lib, ... }:
{
  imports = [ ./minimal.nix ];
  services.mvm.guest.profile = lib.mkForce "python";
  # `python3` of the search path has pip; venv is in Python's own library.
  environment.systemPackages = [
    (config.services.mvm.guest.python.withPackages (packages: [ packages.pip ]))
  ];
}
