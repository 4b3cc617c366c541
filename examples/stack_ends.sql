-- How the stacks of a recording end: sqlite3 -readonly boot.guestprof < examples/stack_ends.sql
SELECT callchains.end AS stack_end, count(*) AS samples, round(sum(samples.weight_ns) / 1e9, 3) AS seconds
FROM samples JOIN callchains ON callchains.id = samples.callchain
GROUP BY callchains.end
ORDER BY samples DESC;
