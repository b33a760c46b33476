create table t(a integer primary key, b text);
with recursive c(x) as (select 1 union all select x+1 from c where x<1500) insert into t select x, printf('%0100d', x) from c;
create index i on t(b);
select count(*), max(b) from t where b like '%7%';
update t set b = b || 'z' where a % 3 = 0;
delete from t where a % 2 = 0;
vacuum;
