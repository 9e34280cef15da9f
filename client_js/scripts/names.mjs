// Which members of our own classes and types no user of the SDK can see: the build gives them short names.
//
// A name stays as it is when a type that an entry exports has it, when a frame has it, when a string says it, when it is read of
// a value of any type (a message may have it), or when it is used for something of the platform as well. All modules are built
// with one table, so that they agree.
import ts from "typescript";

/** The names, of a program that has the sources of `src`. */
export function insideNames(program, src, entries) {
  const checker = program.getTypeChecker();
  const isOurs = (node) => node.getSourceFile().fileName.startsWith(src);
  const [own, kept, ofPlatform, meant] = [new Set(), new Set(), new Set(), new Set()];
  const visit = (node, names) => {
    if (node.name && (ts.isParameter(node) ? ts.isParameterPropertyDeclaration(node, node.parent) : ts.isClassElement(node) || ts.isTypeElement(node))) {
      names.add(node.name.text);
    }
    if (names !== ofPlatform) {
      if (ts.isStringLiteralLike(node) && !ts.isLiteralTypeNode(node.parent)) kept.add(node.text);
      // A type that stands where it is used may describe something of the platform.
      if (ts.isTypeElement(node) && ts.isTypeLiteralNode(node.parent) && node.name) meant.add(node.name.text);
      const use = (name, symbol) => !symbol?.declarations?.every(isOurs) && meant.add(name);
      // Of a value of any type it may be a field of somebody's message.
      const read = (name, symbol) => (symbol ? use(name, symbol) : kept.add(name));
      if (ts.isPropertyAccessExpression(node)) read(node.name.text, checker.getSymbolAtLocation(node.name));
      else if (ts.isBindingElement(node) && ts.isObjectBindingPattern(node.parent) && !node.dotDotDotToken) {
        const text = (node.propertyName ?? node.name).text ?? "";
        read(text, checker.getTypeAtLocation(node.parent).getProperty(text));
      } else if (ts.isObjectLiteralElement(node) && node.name && ts.isIdentifier(node.name)) {
        use(node.name.text, checker.getContextualType(node.parent)?.getProperty(node.name.text));
      }
    }
    ts.forEachChild(node, (child) => visit(child, names));
  };
  for (const file of program.getSourceFiles()) {
    if (program.isSourceFileDefaultLibrary(file)) visit(file, ofPlatform);
    else if (isOurs(file)) visit(file, file.fileName.endsWith("/frames.ts") ? kept : own);
  }
  for (const name of meant) if (ofPlatform.has(name)) kept.add(name);

  const isInside = (declaration) => {
    const before = declaration.getSourceFile().text.slice(declaration.pos, declaration.getStart());
    return (ts.getCombinedModifierFlags(declaration) & (ts.ModifierFlags.Private | ts.ModifierFlags.Protected)) !== 0 || before.includes("@internal");
  };
  const seen = new Set();
  const see = (type) => {
    if (seen.has(type)) return;
    seen.add(type);
    for (const part of [...(type.types ?? []), ...(type.aliasTypeArguments ?? []), ...(type.target ? checker.getTypeArguments(type) : [])]) see(part);
    for (const signature of [...type.getCallSignatures(), ...type.getConstructSignatures()]) {
      if (signature.declaration && isInside(signature.declaration)) continue;
      see(signature.getReturnType());
      for (const parameter of signature.getParameters()) see(checker.getTypeOfSymbol(parameter));
    }
    if (type.symbol?.declarations && !type.symbol.declarations.some(isOurs)) return;
    for (const index of checker.getIndexInfosOfType(type)) see(index.type);
    for (const property of checker.getPropertiesOfType(type)) {
      if (property.declarations?.every((declaration) => !isOurs(declaration) || isInside(declaration))) continue;
      kept.add(property.name);
      see(checker.getTypeOfSymbol(property));
    }
  };
  for (const entry of entries) {
    for (const symbol of checker.getExportsOfModule(checker.getSymbolAtLocation(program.getSourceFile(src + entry)))) {
      // Of an export that is listed the comment stands before the list.
      const isListed = ([declaration]) => isInside(ts.isExportSpecifier(declaration) ? declaration.parent.parent : declaration);
      const real = symbol.flags & ts.SymbolFlags.Alias ? checker.getAliasedSymbol(symbol) : symbol;
      if ([symbol, real].some(({ declarations }) => declarations && isListed(declarations))) continue;
      see(checker.getDeclaredTypeOfSymbol(real));
      if (real.valueDeclaration) see(checker.getTypeOfSymbol(real));
    }
  }
  return [...own].filter((name) => !kept.has(name)).sort();
}
