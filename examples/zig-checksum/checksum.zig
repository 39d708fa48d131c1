//! Prints the SHA-256 of files as sha256sum does; a directory stands for all files in it, sorted by
//! name. Without a path it reads standard input. Ends with 1 when something cannot be read.

const std = @import("std");
const Sha256 = std.crypto.hash.sha2.Sha256;

pub fn main() !u8 {
    var arena: std.heap.ArenaAllocator = .init(std.heap.page_allocator);
    const allocator = arena.allocator();
    const args = try std.process.argsAlloc(allocator);

    var buffer: [4096]u8 = undefined;
    // Not writer(): that writes at positions, which a pipe has not.
    var stdout = std.fs.File.stdout().writerStreaming(&buffer);
    const out = &stdout.interface;

    var status: u8 = 0;
    if (args.len < 2) try print(out, try hash(.stdin()), "-");
    for (args[1..]) |path| {
        add(allocator, out, path) catch |err| {
            std.debug.print("{s}: {s}\n", .{ path, @errorName(err) });
            status = 1;
        };
    }
    try out.flush();
    return status;
}

fn add(allocator: std.mem.Allocator, out: *std.Io.Writer, path: []const u8) !void {
    var dir = std.fs.cwd().openDir(path, .{ .iterate = true }) catch |err| switch (err) {
        error.NotDir => return print(out, try hash(try std.fs.cwd().openFile(path, .{})), path),
        else => return err,
    };
    defer dir.close();

    var names: std.ArrayList([]const u8) = .empty;
    var walker = try dir.walk(allocator);
    while (try walker.next()) |entry| {
        if (entry.kind != .directory) try names.append(allocator, try allocator.dupe(u8, entry.path));
    }
    std.mem.sort([]const u8, names.items, {}, lessThan);
    for (names.items) |name| {
        const full = try std.fs.path.join(allocator, &.{ path, name });
        try print(out, try hash(try dir.openFile(name, .{})), full);
    }
}

fn lessThan(_: void, a: []const u8, b: []const u8) bool {
    return std.mem.lessThan(u8, a, b);
}

/// Closes the file.
fn hash(file: std.fs.File) ![Sha256.digest_length]u8 {
    defer file.close();
    var hasher: Sha256 = .init(.{});
    var chunk: [64 * 1024]u8 = undefined;
    while (true) {
        const length = try file.read(&chunk);
        if (length == 0) return hasher.finalResult();
        hasher.update(chunk[0..length]);
    }
}

fn print(out: *std.Io.Writer, digest: [Sha256.digest_length]u8, name: []const u8) !void {
    try out.print("{x}  {s}\n", .{ &digest, name });
}
