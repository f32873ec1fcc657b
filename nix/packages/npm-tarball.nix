# One package of npm's as npm itself fetches it, by the digest that the lock has of it. Which registry npm asks is its own
# business: its default, or what NPM_CONFIG_REGISTRY says where the builder runs.
{
  pkgs,
  nodejs,
  name,
  version,
  integrity,
}:
let
  inherit (pkgs) lib;
  plain = lib.replaceStrings [ "@" "/" ] [ "" "-" ] name;
in
pkgs.stdenvNoCC.mkDerivation {
  name = "${plain}-${version}.tgz";
  outputHashMode = "flat";
  outputHash = integrity;
  preferLocalBuild = true;
  nativeBuildInputs = [
    nodejs
    pkgs.cacert
  ];
  impureEnvVars = lib.fetchers.proxyImpureEnvVars ++ [ "NPM_CONFIG_REGISTRY" ];
  NODE_EXTRA_CA_CERTS = "${pkgs.cacert}/etc/ssl/certs/ca-bundle.crt";
  buildCommand = ''
    export HOME=$TMPDIR
    mkdir packed
    npm pack ${lib.escapeShellArg "${name}@${version}"} --silent --ignore-scripts --pack-destination packed
    mv packed/*.tgz "$out"
  '';
}
