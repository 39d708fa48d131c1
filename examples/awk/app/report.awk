# Requests and bytes by status of a web server's log in the common format, and its busiest path.
{
    status = $(NF - 1)
    requests[status]++
    bytes[status] += $NF
    if (++hits[$7] > hits[busiest])
        busiest = $7
}

END {
    for (status = 100; status < 600; status++)
        if (status in requests)
            printf "%d %6d requests %10d bytes\n", status, requests[status], bytes[status]
    printf "busiest: %s, %d of %d\n", busiest, hits[busiest], NR
}
