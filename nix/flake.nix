{
  description = "mvm: images of guests that run OpenClaw, the modules they are made of, and mvm itself for NixOS hosts";

  inputs = {
    nixpkgs.url = "github:NixOS/nixpkgs/nixos-26.05";
    # An application flake, whose OpenClaw is taken instead of npm's: `--override-input application <flake>`, which mvm
    # does when a pool names such a flake. Nothing is taken from nixpkgs, which has no `packages`.
    application.follows = "nixpkgs";
  };

  outputs =
    {
      self,
      nixpkgs,
      application,
    }:
    let
      inherit (nixpkgs) lib;
      inherit (import ./lib/generated.nix) machine;
      systems = [
        "x86_64-linux"
        "aarch64-linux"
      ];
      forSystems = lib.genAttrs systems;
      manifest = builtins.fromTOML (builtins.readFile ./mvm-profiles.toml);
      roles = removeAttrs manifest.roles machine.reservedRoles;

      modulesOf = role: profile: [
        (./. + "/${manifest.roles.${role}.module}")
        (./. + "/${manifest.profiles.${profile}.module}")
      ];
      image =
        pkgs: role: profile:
        import ./lib/image.nix {
          inherit pkgs;
          guest = import ./lib/guest.nix {
            inherit nixpkgs;
            inherit (pkgs.stdenv.hostPlatform) system;
            modules = modulesOf role profile;
            openclaw =
              if lib.elem role machine.openclawRoles then
                import ./packages/from-application.nix {
                  inherit pkgs application;
                  inherit (pkgs.stdenv.hostPlatform) system;
                }
              else
                null;
          };
        };
      images =
        pkgs:
        lib.listToAttrs (
          lib.concatMap (
            role:
            map (profile: {
              name = "tenant-${role}-${profile}";
              value = image pkgs role profile;
            }) (lib.attrNames manifest.profiles)
          ) (lib.attrNames roles)
        );
    in
    {
      packages = forSystems (
        system:
        let
          pkgs = nixpkgs.legacyPackages.${system};
        in
        images pkgs
        // {
          mvm = import ./packages/mvm.nix { inherit pkgs; };
          openclaw = import ./packages/openclaw.nix { inherit pkgs; };
        }
      );

      # By their paths, so that one that is imported twice is one; nix wants no bare path here.
      nixosModules = lib.mapAttrs (_: path: { imports = [ path ]; }) {
        mvm-baseline = ./guests/baseline.nix;
        mvm-role-gateway = ./roles/gateway.nix;
        mvm-role-worker = ./roles/worker.nix;
        mvm-role-builder = ./roles/builder.nix;
        mvm-role-openclaw = ./roles/openclaw.nix;
        mvm-host = ./hosts/mvm-host.nix;
      };

      checks = forSystems (
        system:
        import ./checks {
          inherit self nixpkgs system;
        }
      );
    };
}
