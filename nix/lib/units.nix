# The units of a role, as `systemd.services` takes them.
{ lib }:
let
  inherit (import ./generated.nix) services;

  unit = _name: described: {
    inherit (described)
      description
      after
      requires
      unitConfig
      serviceConfig
      ;
    wantedBy = lib.optional described.atBoot "multi-user.target";
    # NixOS gives every unit a search path of its own; in a guest there is one for all.
    environment = described.environment // {
      PATH = lib.mkForce described.environment.PATH;
    };
  };
in
{
  ofRole = role: lib.mapAttrs unit (lib.filterAttrs (_: described: lib.elem role described.roles) services.units);
}
