// The compiler takes functions without a body where there is assembly.
