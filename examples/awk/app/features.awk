# What a script sees of its world, one line each. docs/languages.md rests on it.
BEGIN {
    print "arguments", ARGV[1], ARGV[2]
    print "environment", ENVIRON["GREETING"]
    print "standard error" > "/dev/stderr"
    print "standard input", ((getline line < "-") > 0 ? line : "ended")
    print "written" > "/scratch/note"
    close("/scratch/note")
    getline line < "/scratch/note"
    print "files", line
    print "clock", (strftime("%Y") >= 2024)
    srand()
    print "random", (rand() != rand())
    exit 7
}
