// Which members of our own classes and types no user of the SDK can see: the build gives them short names.
//
// A name stays as it is when a type that an entry exports has it, when a frame has it, when a string says it, or when it is used
// for something of the platform as well. All modules are built with one table, so that they agree.
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
      // What it belongs to is not looked up: it may be handed to the platform.
      if (ts.isObjectLiteralElement(node) && node.name) meant.add(node.name.text);
      if (ts.isBindingElement(node)) meant.add((node.propertyName ?? node.name).text);
      if (ts.isPropertyAccessExpression(node) && !checker.getSymbolAtLocation(node.name)?.declarations?.every(isOurs)) meant.add(node.name.text);
    }
    ts.forEachChild(node, (child) => visit(child, names));
  };
  for (const file of program.getSourceFiles()) {
    if (program.isSourceFileDefaultLibrary(file)) visit(file, ofPlatform);
    else if (isOurs(file)) visit(file, file.fileName.endsWith("/frames.ts") ? kept : own);
  }
  for (const name of meant) if (ofPlatform.has(name)) kept.add(name);

  const isInside = (declaration) => {
    const { text } = declaration.getSourceFile();
    const comments = ts.getLeadingCommentRanges(text, declaration.pos) ?? [];
    return (ts.getCombinedModifierFlags(declaration) & (ts.ModifierFlags.Private | ts.ModifierFlags.Protected)) !== 0 || comments.some(({ pos, end }) => text.slice(pos, end).includes("@internal"));
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
