{
  description = "Stands in for nixpkgs in the tests of mvm's flake: a `lib` that evaluates, packages in name only";

  outputs = _: {
    lib = import ./lib.nix;
    legacyPackages = {
      x86_64-linux = import ./pkgs.nix { system = "x86_64-linux"; };
      aarch64-linux = import ./pkgs.nix { system = "aarch64-linux"; };
    };
  };
}
