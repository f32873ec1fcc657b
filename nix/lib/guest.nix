# A guest of a role and a profile, evaluated. `openclaw` is a package to take instead of npm's, or null.
{
  nixpkgs,
  system,
  modules,
  openclaw ? null,
}:
let
  inherit (nixpkgs) lib;
in
lib.nixosSystem {
  inherit system;
  modules =
    modules
    # An image holds copies of what is linked elsewhere.
    ++ [ { services.mvm.guest.links = lib.mkForce false; } ]
    ++ lib.optional (openclaw != null) { services.mvm.openclaw.package = lib.mkDefault openclaw; };
}
