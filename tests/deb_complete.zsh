# Run by deb_smoke.sh with zsh: types a part of a command at a terminal, and Tab, as people do; prints how it goes on.
zmodload zsh/zpty
zpty terminal zsh --no-rcs --interactive
zpty -w terminal 'autoload -Uz compinit; compinit -D -u; echo re""ady'
zpty -r -m terminal said '*ready*'
zpty -w terminal $'statsfs mo\t--help'
zpty -r -m terminal said '*Usage: *Options:*'
zpty -d terminal
echo ${${said#*Usage: }%%$'\r'*}
