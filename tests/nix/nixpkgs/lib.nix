# As much of nixpkgs' `lib` as mvm's modules use, written for these tests: types that check, priorities, conditions,
# merging, submodules. What a module does wrong with it, it does wrong with nixpkgs; the converse needs nixpkgs itself.
let
  inherit (builtins)
    all
    any
    attrNames
    attrValues
    concatLists
    concatMap
    concatStringsSep
    elem
    elemAt
    filter
    foldl'
    fromJSON
    genList
    hasAttr
    head
    isAttrs
    isBool
    isFloat
    isFunction
    isInt
    isList
    isPath
    isString
    length
    listToAttrs
    mapAttrs
    match
    replaceStrings
    split
    tail
    toString
    typeOf
    ;
in
rec {
  inherit
    attrNames
    concatMap
    elem
    filter
    head
    listToAttrs
    mapAttrs
    replaceStrings
    ;

  # Lists, sets, texts.
  optional = condition: value: if condition then [ value ] else [ ];
  optionals = condition: values: if condition then values else [ ];
  optionalAttrs = condition: set: if condition then set else { };
  last = list: elemAt list (length list - 1);
  filterAttrs =
    keep: set:
    listToAttrs (
      concatMap (name: optional (keep name set.${name}) { inherit name; value = set.${name}; }) (attrNames set)
    );
  mapAttrsToList = function: set: map (name: function name set.${name}) (attrNames set);
  genAttrs = names: function: listToAttrs (map (name: { inherit name; value = function name; }) names);
  unique = foldl' (found: value: if elem value found then found else found ++ [ value ]) [ ];
  concatStrings = concatStringsSep "";
  splitString = separator: text: filter isString (split (escape separator) text);
  escape = replaceStrings [ "." "*" "+" "(" ")" "[" "]" "/" ] [ "\\." "\\*" "\\+" "\\(" "\\)" "\\[" "\\]" "/" ];
  escapeShellArg = text: if match "[A-Za-z0-9@/_.:=-]+" text != null then text else "'${replaceStrings [ "'" ] [ "'\\''" ] text}'";
  toInt = text: let value = fromJSON text; in if isInt value then value else throw "${text} is no number";
  versionAtLeast = version: least: builtins.compareVersions version least >= 0;
  getOutput = name: package: package.${name} or package;
  makeBinPath = packages: concatStringsSep ":" (map (package: "${package}/bin") packages);
  licenses.asl20 = "asl20";
  platforms.linux = [ "x86_64-linux" "aarch64-linux" ];
  fetchers.proxyImpureEnvVars = [ "https_proxy" ];

  # What is written in modules.
  mkOption = attributes: { _type = "option"; } // attributes;
  mkEnableOption = what: mkOption {
    type = types.bool;
    default = false;
    description = "Whether to enable ${what}.";
  };
  mkIf = condition: content: { _type = "if"; inherit condition content; };
  mkMerge = contents: { _type = "merge"; inherit contents; };
  mkOverride = priority: content: { _type = "override"; inherit priority content; };
  mkDefault = mkOverride 1000;
  mkForce = mkOverride 50;
  optionDefault = 1500;
  plain = 100;

  isType = name: value: isAttrs value && value._type or "" == name;

  # A value as what is left of it: a list of definitions { value, priority }.
  discharge =
    definition:
    let
      inherit (definition) value priority;
    in
    if isType "if" value then
      optionals value.condition (discharge (definition // { value = value.content; }))
    else if isType "merge" value then
      concatMap (content: discharge (definition // { value = content; })) value.contents
    else if isType "override" value then
      discharge { value = value.content; inherit (value) priority; }
    else
      [ { inherit value priority; } ];
  defined = value: { inherit value; priority = plain; };

  # The same of a set of options, without looking at a condition: it goes to each of them, for it may depend on others.
  pushDown =
    value:
    if isType "if" value then
      map (mapAttrs (_: mkIf value.condition)) (pushDown value.content)
    else if isType "merge" value then
      concatMap pushDown value.contents
    else if isType "override" value then
      map (mapAttrs (_: mkOverride value.priority)) (pushDown value.content)
    else
      [ value ];

  strongest =
    definitions:
    let
      least = foldl' (least: definition: if definition.priority < least then definition.priority else least) 100000 definitions;
    in
    filter (definition: definition.priority == least) definitions;

  # Types: `check` a value, `merge` values (definitions that are left) at a place.
  leaf = name: check: {
    inherit name check;
    merge =
      place: values:
      let
        different = filter (value: value != head values) values;
      in
      if different != [ ] then
        throw "${place} is defined twice, and differently"
      else
        head values;
  };
  types = rec {
    bool = leaf "bool" isBool;
    int = leaf "int" isInt;
    str = leaf "str" isString;
    float = leaf "float" isFloat;
    path = leaf "path" (value: isPath value || (isString value && builtins.substring 0 1 value == "/") || isDerivation value);
    package = leaf "package" isDerivation;
    raw = leaf "raw" (_: true);
    port = leaf "port" (value: isInt value && value >= 0 && value <= 65535);
    ints.positive = leaf "positive int" (value: isInt value && value > 0);
    lines = str // {
      name = "lines";
      merge = _: concatStringsSep "\n";
    };
    enum = values: leaf "one of ${concatStringsSep ", " (map toString values)}" (value: elem value values);
    nullOr = inner: {
      name = "null or ${inner.name}";
      check = value: value == null || inner.check value;
      merge = place: values: if all (value: value == null) values then null else inner.merge place values;
    };
    oneOf = inner: leaf (concatStringsSep " or " (map (each: each.name) inner)) (value: any (each: each.check value) inner);
    listOf = inner: {
      name = "list of ${inner.name}";
      check = isList;
      merge = place: values: map (value: checked "${place}.*" inner [ (defined value) ]) (concatLists values);
    };
    attrsOf = inner: {
      name = "set of ${inner.name}";
      check = isAttrs;
      merge =
        place: values:
        let
          names = unique (concatMap attrNames values);
          definitions = name: concatMap (value: optional (hasAttr name value) (defined value.${name})) values;
        in
        filterAttrs (_: value: value != undefined) (
          genAttrs names (name: mergeDefinitions "${place}.${name}" inner (definitions name))
        );
    };
    anything = {
      name = "anything";
      check = _: true;
      merge =
        place: values:
        if length values > 1 && all (value: isAttrs value && !isDerivation value) values then
          (attrsOf anything).merge place values
        else
          (leaf "anything" (_: true)).merge place values;
    };
    submodule = module: {
      name = "submodule";
      check = value: isAttrs value || isFunction value;
      merge =
        place: values:
        (evalModules {
          inherit place;
          modules = [ module ] ++ map (value: { config = value; }) values;
        }).config;
    };
  };
  undefined = { _type = "undefined"; };
  isDerivation = value: isAttrs value && value.type or "" == "derivation";

  checked =
    place: type: definitions:
    let
      values = map (definition: definition.value) definitions;
      wrong = filter (value: !type.check value) values;
    in
    if wrong != [ ] then throw "${place} is not ${type.name}: ${shown (head wrong)}" else type.merge place values;
  shown = value: if isFunction value then "a function" else typeOf value + optionalText value;
  optionalText = value: if isString value || isInt value || isBool value then " " + builtins.toJSON value else "";
  mergeDefinitions =
    place: type: definitions:
    let
      left = strongest (concatMap discharge definitions);
    in
    if left == [ ] then undefined else checked place type left;

  # Evaluation. `place` is where the modules are, for messages.
  evalModules =
    {
      modules,
      specialArgs ? { },
      place ? "",
    }:
    let
      arguments = { inherit config options; lib = import ./lib.nix; } // specialArgs;
      load =
        module:
        let
          value = if isPath module || isString module then import module else module;
          called = if isFunction value then value arguments else value;
        in
        {
          key = if isPath module || isString module then toString module else null;
          imports = called.imports or [ ];
          options = called.options or { };
          config =
            if called ? config || called ? options then
              called.config or { }
            else
              removeAttrs called [ "imports" ];
        };
      # Every module once, what it imports before it.
      collect =
        found: list:
        foldl' (
          known: module:
          let
            loaded = load module;
          in
          if loaded.key != null && any (each: each.key == loaded.key) known then
            known
          else
            collect (known ++ [ loaded ]) loaded.imports
        ) found list;
      all' = collect [ ] modules;
      options = mergeOptions place (map (module: module.options) all');
      config = evalSet place options (map (module: defined module.config) all');
    in
    {
      inherit config options;
    };

  mergeOptions =
    place: sets:
    genAttrs (unique (concatMap attrNames sets)) (
      name:
      let
        here = concatMap (set: optional (hasAttr name set) set.${name}) sets;
        at = if place == "" then name else "${place}.${name}";
      in
      if any (isType "option") here then
        if length here > 1 then throw "the option ${at} is declared twice" else head here
      else
        mergeOptions at here
    );

  evalSet =
    place: options: definitions:
    let
      sets = concatMap (definition: pushDown definition.value) definitions;
      unknown = filter (name: !(hasAttr name options)) (unique (concatMap attrNames sets));
      values = mapAttrs (
        name: option:
        let
          at = if place == "" then name else "${place}.${name}";
          here = concatMap (set: optional (hasAttr name set) (defined set.${name})) sets;
        in
        if isType "option" option then evalOption at option here else evalSet at option here
      ) options;
    in
    if unknown != [ ] then
      throw "the option ${if place == "" then "" else "${place}."}${head unknown} does not exist"
    else
      values;

  evalOption =
    place: option: definitions:
    let
      type = option.type or types.anything;
      value = mergeDefinitions place type definitions;
      given = concatMap discharge definitions;
    in
    if option.readOnly or false && given != [ ] then
      throw "${place} is read-only"
    else if value != undefined then
      value
    else if option ? default then
      checked place type [ (defined option.default) ]
    else
      throw "the option ${place} has no value";

  # What a flake of nixpkgs has in its `lib` beside all this.
  nixosSystem =
    { system, modules }:
    evalModules {
      modules = [ ./nixos.nix ] ++ modules;
      specialArgs.pkgs = import ./pkgs.nix { inherit system; };
    };
}
